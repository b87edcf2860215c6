FROM 127.0.0.1:1/corpus/base:1
RUN echo two > /etc/generation
ENV GENERATION=2
