x
上
