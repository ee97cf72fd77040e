<prompt schema="code">
  <player.py/>
  <map.py/>
  <user>Write a function that counts the villages of a map.</user>
</prompt>
