FROM a
CMD ["a", 'b']
CMD ['single']
CMD ["open
CMD ["unclosed", "
CMD [a]
CMD []
RUN [ "x" ]
RUN   [	"tab"	]
CMD ["\ud83d\ude00 \ud800", "\/"]
CMD [""]
CMD { "a": 1 }
ENTRYPOINT ["a","b"]
ENTRYPOINT [ "$HOME" ]
SHELL ["/bin/bash", "-c"]
CMD "[\"a\"]"
CMD ["a",]
CMD ["bad \x escape"]
