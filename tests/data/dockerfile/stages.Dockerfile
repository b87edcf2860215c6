ARG BASE=alpine
FROM ${BASE} AS one
FROM one as Two
FROM --platform=linux/arm64 scratch
COPY --from=0 /a /b
COPY --from=TWO /a /b
FROM two AS one
