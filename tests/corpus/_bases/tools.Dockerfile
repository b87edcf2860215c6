FROM 127.0.0.1:1/corpus/base:1
RUN mkdir -p /opt/tool/lib && echo tools > /opt/tool/run && chmod 755 /opt/tool/run && echo lib > /opt/tool/lib/a
