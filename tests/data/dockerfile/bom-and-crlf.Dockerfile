# escape=\
FROM a
RUN one \
    two

COPY <<E /x
line
E
USER me
