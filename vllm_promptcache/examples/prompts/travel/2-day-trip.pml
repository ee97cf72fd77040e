<prompt schema="travel">
  <trip-plan duration="a long weekend">
    <lisbon/> We stay in the Alfama.
  </trip-plan>
  <walker/>
  <user>What is the best day trip?</user>
</prompt>
