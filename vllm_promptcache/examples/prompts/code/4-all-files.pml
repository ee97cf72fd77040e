<prompt schema="code">
  <unit.py/>
  <map.py/>
  <player.py/>
  <game.py/>
  <database.py/>
  <user>What is the class Game for?</user>
</prompt>
