<prompt schema="code">
  <database.py/>
  <game.py/>
  <unit.py/>
  <user>Write a method of the class Database that deletes a saved game.</user>
</prompt>
