<prompt schema="travel">
  <food-lovers/>
  <trip-plan duration="five days"><marrakesh/></trip-plan>
  <budget amount="900 euros"/>
  <user>What is the best place to eat?</user>
</prompt>
