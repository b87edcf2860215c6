echo one
一
