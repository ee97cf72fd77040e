<schema name="code">
<!-- After the code generation of Gim et al., section 5.6: each source file is a module, and a prompt
     imports the files that matter. -->
<system>You are a Python programmer. You answer with short, complete code.</system>
<user>These are files of a small turn-based game.
  <module name="unit.py" src="skirmish/unit.py" xml:space="preserve"/>
  <module name="map.py" src="skirmish/map.py" xml:space="preserve"/>
  <module name="player.py" src="skirmish/player.py" xml:space="preserve"/>
  <module name="game.py" src="skirmish/game.py" xml:space="preserve"/>
  <module name="database.py" src="skirmish/database.py" xml:space="preserve"/>
</user>
</schema>
