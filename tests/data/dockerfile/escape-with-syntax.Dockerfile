#  Syntax = docker/dockerfile:1  
# ESCAPE=`
# check=skip=all;error=true
# unknown=thing
FROM a
RUN a `
 b
