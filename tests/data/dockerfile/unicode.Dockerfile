FROM a
LABEL Größe="ein Wort" 日本=語
ENV a=é b=c
RUN echo ☃ 　
COPY --chown=é x y z
USER 한국어
HEALTHCHECK CMD é
