<schema name="text">
  <module name="joined"> one<!-- a comment --> &lt;two&gt; <![CDATA[<three> &amp; ]]>four
  </module>
  <module name="kept" xml:space="preserve">
    line one
    <module name="inherited">  two  </module>
    <module name="collapsed" xml:space="default">  three  </module></module>
  <module name="references">&#32;&#x41;&#66;&#9;</module>
  <module name="cdata"><![CDATA[  ]]></module>
  <module name="blank">

  </module>
</schema>
