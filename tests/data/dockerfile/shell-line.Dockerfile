FROM a
RUN apt-get update && apt-get install -y \
      a=1.* \
      b \
    && rm -rf /var/lib/apt/lists/* \
    ; if [ "$x" = 'y' ]; then echo "z \" w"; fi
RUN set -eu; \
    for i in 1 2 3; do \
        echo $((i<2)); \
    done
CMD exec "$0" "$@"
