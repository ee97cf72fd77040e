<schema name="travel">
	<module name="trip-plan">
		Plan a trip of <param name="duration" lenght="8"/>.
	</module>
</schema>
