# first comment
FROM a
	# indented comment
RUN one && \
# comment in the middle
  two && \
    # an indented one

  three # not a comment
RUN echo "# no comment" \
  # gone
  end
#last
