<schema name="options" encode="anchored" layout="compact" private="true">
  Rules first.
  <module name="unit.py" encode="isolated" cache="false" src="unit.txt"/>
  <module name="letter">
    Dear <parameter name="who" length="4" scaffold="Sir or Madam"/>,
    <union scaffold="short">
      <module name="short">Thanks.</module>
      <module name="long"><param name="why" len="20" placeholder="..."/> Thanks a lot.</module>
    </union>
    <user>A role <module name="deep">within a module</module></user>
  </module>
</schema>
