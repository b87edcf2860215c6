FROM 127.0.0.1:1/corpus/base:1
RUN echo onbuild > /etc/kind && mkdir /app
WORKDIR /app
ONBUILD COPY conf /etc/conf
ONBUILD RUN sha256sum /etc/conf/* > /etc/conf.sums
