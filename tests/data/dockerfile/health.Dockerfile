FROM a
HEALTHCHECK CMD curl -f http://localhost/ || exit 1
HEALTHCHECK --interval=5m CMD	["curl", "-f"]
HEALTHCHECK cmd ["a" b]
HEALTHCHECK NONE
HEALTHCHECK --timeout=3s \
  --retries=2 \
  CMD a   b
