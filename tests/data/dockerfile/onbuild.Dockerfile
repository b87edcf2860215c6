FROM a
ONBUILD RUN ["a", "b"]
ONBUILD	ADD . /app
onbuild env a=b c='d e'
ONBUILD run --mount=type=cache,target=/x make
ONBUILD CMD x \
 y
ONBUILD HEALTHCHECK NONE
ONBUILD VOLUME ["/x"]
