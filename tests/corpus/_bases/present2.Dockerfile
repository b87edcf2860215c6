FROM 127.0.0.1:1/corpus/base:1
RUN echo present2 > /etc/present
ENV KIND=present2
