<schema name="options" encode="anchored" layout="compact" private="true" pin="true" ttl="2h">
  Rules first.
  <module name="unit.py" encode="isolated" cache="false" src="unit.txt"/>
  <module name="letter" pin="false">
    Dear <parameter name="who" length="4" scaffold="Sir or Madam"/>,
    <union scaffold="short">
      <module name="short" pin="true">Thanks.</module>
      <module name="long"><param name="why" len="20" placeholder="..."/> Thanks a lot.</module>
    </union>
    <user>A role <module name="deep">within a module</module></user>
  </module>
</schema>
