FROM a
ENV name value with  spaces and "quotes"
ENV name=value
ENV a=1 b='2 3' c="4 5" d=6\ 7 e=\"x\"
ENV f=g=h i= j='' k=""
ENV l="a\"b" m='c\' n=o
ENV p=a\
b q=r
ENV	tab	value
ENV TITLE="mixed"quotes'and'more
LABEL "com.example.vendor"="ACME Incorporated" version=1.0
LABEL description="This text \
spans lines"
LABEL old style label
ENV 'x y'=z
