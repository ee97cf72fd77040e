<schema name="travel">
  <module name="trip-plan">
    Plan a trip.
    <module name="miami">Beaches.
  </module>
</schema>
