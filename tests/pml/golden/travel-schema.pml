<?xml version="1.0" encoding="UTF-8"?>
<!-- The example of the language's description. -->
<schema name="travel">
  <system>You are a travel planner.</system>
  <user>
    <module name="trip-plan">Plan a trip of <param name="duration" len="8"/>.
      <union>
        <module name="miami">Miami: beaches, art deco &amp; surf.</module>
        <module name="maui">Maui: volcanoes.</module>
      </union>
    </module>
  </user>
  <scaffold modules="trip-plan trip-plan/miami"/>
</schema>
