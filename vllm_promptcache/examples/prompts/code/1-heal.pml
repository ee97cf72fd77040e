<prompt schema="code">
  <unit.py/>
  <user>Write a function that heals a unit.</user>
</prompt>
