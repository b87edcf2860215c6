FROM a
RUN one \

  two \
   
  three

\
USER me
