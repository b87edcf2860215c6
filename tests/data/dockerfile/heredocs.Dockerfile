FROM a
RUN <<EOF
echo one
# kept comment
echo two \
EOF
RUN <<-EOT cat
	tabs	kept inside
		two
	EOT
RUN 3<<'A' 4<<"B" cat /dev/fd/3
$a
A
$b
B
COPY <<a.txt <<-"b.txt" plain.txt /dir/
content $x
a.txt
	other
b.txt
ADD <<E /e
E
RUN ["<<JSON"]
RUN echo "<<quoted" && cat <<x'y'z
xyz
ONBUILD RUN <<EOF
FROM nothing
EOF
RUN <<A <<A
one
A
two
A
USER <<NOT
RUN a <<<b
RUN cat <<E \
  && cat <<F
e
E
f
F
RUN <<$X <<\Y
$X
Y
