<prompt schema="travel">
  <trip-plan duration="three days"><maui/></trip-plan>
  <family/>
  <user>What is the best beach for small children?</user>
</prompt>
