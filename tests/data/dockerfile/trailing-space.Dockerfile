FROM  a  	
RUN x   
  USER  me	
	CMD	["a"]  
ENV a=b 

WORKDIR /x \

