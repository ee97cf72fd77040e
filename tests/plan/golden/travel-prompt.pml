<prompt schema="travel">
  <trip-plan duration="three days"><miami/></trip-plan>
  <user>Highlight the surf spots.</user>
</prompt>
