<schema name="shelf" layout="compact">
  <primer>
    Document 0:
    A made-up title
    Some text of the kind that follows.
  </primer>
  <module name="d1">Document 1: one</module>
  <module name="series">Document 2: in parts
    <module name="part-1">Part 1</module>
    <primer from="modules"/>
    <module name="part-2">Part 2</module>
  </module>
</schema>
