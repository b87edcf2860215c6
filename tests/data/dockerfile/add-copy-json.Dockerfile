FROM scratch AS files
COPY ["a b.txt", "c.txt", "/to here/"]
ADD ["one", "/two"]
COPY [ "a" , "b" ]
copy	["tab","/x"]
COPY ["quote\"d", "\u0041", "/d"]
COPY 'not json' /d
ADD [not json] /d
VOLUME ["/v 1", "/v2"]
