<prompt schema="travel">
  <budget amount="two thousand dollars"/>
  <kyoto/>
  <trip-plan duration="one week"/>
  <user>Write a short summary of the destination.</user>
</prompt>
