<schema name="travel" encode="anchored">
  <system>You are a travel planner.</system>
  <user>
    <module name="trip-plan">Plan a trip of <param name="duration" len="8"/>.
      <union>
        <module name="miami">Miami has a long beach.</module>
        <module name="maui">Maui is an island far out in the sea.</module>
      </union>
    </module>
  </user>
</schema>
