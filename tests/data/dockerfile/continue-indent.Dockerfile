FROM a
RUN echo a\
 b\
	c\
d
RUN	x \  
  y \	
  z
RUN a \\
RUN b \\\
RUN "c \
 d"
