<prompt schema="code">
  <database.py/>
  <game.py/>
  <unit.py/>
  <user>What is the class Database for?</user>
</prompt>
