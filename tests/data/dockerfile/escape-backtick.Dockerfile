# escape=`
FROM windows
RUN dir c:\ `
  /s
COPY a.txt c:\dst\
ENV a=b` c d="e`"f"
RUN x\
USER y``
