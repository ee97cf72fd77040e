<prompt schema="travel">
  Before <trip-plan duration='2 &lt; 3 "days"
  or more'> within <miami/> and <maui/></trip-plan>
  between
  <system>a role with <note/></system> after
</prompt>
