FROM a
MAINTAINER Some One <some@one.example>
MAINTAINER "quoted" 
STOPSIGNAL SIGTERM
USER me:you
WORKDIR /a b/c
EXPOSE 80
VOLUME /a /b	/c
VOLUME  [ x ]
