FROM a\b
RUN echo \"a\" 'b' \
    "c d"
COPY a\ b /c
ADD \x /y
ENV x=\ y
USER "me"
WORKDIR /a\ b
EXPOSE 80 \
  90/tcp	100-110
