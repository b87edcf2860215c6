# Comment first
# escape=`
FROM a
RUN x `
USER y \
 z
