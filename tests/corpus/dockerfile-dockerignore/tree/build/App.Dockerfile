FROM 127.0.0.1:1/corpus/base:1
COPY . /app/
RUN find /app | sort > /listing
