FROM --platform=$BUILDPLATFORM a AS z
COPY --from=b --chown=1:2 --chmod=755 --link --parents --exclude=*.md --exclude=x a b
ADD --checksum=sha256:00 --keep-git-dir=true --link=false --unpack https://example.com/x /x
RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=k --network=none --security=sandbox make --install
RUN --mount="type=bind,source=a b,target=/c" -- --not-a-flag
RUN -x --y
RUN --device=a.com/b=c,required go
HEALTHCHECK --interval=5s --timeout=1m30s --start-period=1h --start-interval=500ms --retries=3 CMD curl -f --x http://h/
COPY --exclude=a\ b --chown='me' c d
ONBUILD COPY --from=b --chown=x a b
CMD -- a
