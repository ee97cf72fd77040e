<schema name="travel">
<!-- After the travel planner of Gim et al., section 5.6. Line ends are part of the text, so the
     prose starts at the margin. The placeholders are words: a small model answers better for it. -->
<system>You are a travel planner. You answer in a few friendly sentences, and only with what the
notes about the trip say.</system>
<user>
  <module name="trip-plan">I am planning a trip of <param name="duration" len="8"
      placeholder="some number of days or weeks"/>.
    <union>
      <module name="lisbon">The destination is Lisbon, the capital of Portugal.

Lisbon is built on seven steep hills where the river Tagus widens before it meets the Atlantic. Most
visitors begin in the Baixa, the flat grid of streets that was laid out after the earthquake of 1755,
and climb from there. The Alfama, the oldest quarter, survived that earthquake: its lanes are too
narrow for cars, laundry hangs between the houses, and in the evening fado singers perform in small
restaurants. Above it stands the Castle of Saint George, whose walls give the best view over the red
roofs and the river.

The yellow tram 28 rattles through the old quarters from Graça to Estrela. It is always full after
ten in the morning, so ride it early. In Belém, half an hour to the west, the Jerónimos Monastery and
the Tower of Belém recall the age of the navigators, and a bakery beside the monastery has sold warm
custard tarts since 1837.

For the sea, take the train from Cais do Sodré to Cascais, which runs along the coast for forty
minutes and stops at several beaches. Surfers go on to Guincho, where the wind is strong. Sintra, with
its palaces in misty woods, is the favourite day trip. Grilled sardines are best in June, during the
feast of Saint Anthony. Spring and autumn are mild; in August the city is hot and crowded.

In short: the best day trip is Sintra. The best view is from the Castle of Saint George. The best dish
is grilled sardines. The best months are May and October.</module>
      <module name="kyoto">The destination is Kyoto, the old imperial capital of Japan.

Kyoto lies in a valley with wooded hills on three sides. It was the seat of the emperor for more than
a thousand years, and it has some sixteen hundred Buddhist temples and four hundred Shinto shrines.
Nobody sees them all: two or three a day are plenty, and each is pleasant only without haste.

At Fushimi Inari, thousands of orange gates climb the hill behind the shrine. The walk to the top and
back takes two hours; come at sunrise to have it to yourself. The Golden Pavilion is covered in gold
leaf and mirrored in a pond. Ryoan-ji has the most famous rock garden, fifteen stones in raked gravel,
of which one is hidden wherever you sit. In Gion, the old entertainment quarter, wooden teahouses line
the streets, and with luck you see a geiko hurry to an appointment. Please do not stop her for a
photograph.

Nishiki Market sells pickles, knives, tea and grilled fish on skewers. A kaiseki dinner is a long meal
of many small courses that follow the season; noodles with dried herring are the everyday dish. Buses
are slow in the afternoon, so rent a bicycle: the city is flat. Nara, with its tame deer and the great
bronze Buddha, is forty-five minutes away by train. The cherry trees bloom around the first week of
April, and the maples turn red in late November. Both are the busiest times of the year.

In short: the best walk is Fushimi Inari at sunrise. The best market is Nishiki Market. The best day
trip is Nara. The best months are April and November.</module>
      <module name="reykjavik">The destination is Reykjavik, the capital of Iceland.

Reykjavik is the northernmost capital of a sovereign state, and a small one: most of the city can be
crossed on foot in half an hour. The tower of Hallgrímskirkja, a church of grey concrete shaped like
columns of basalt, can be seen from everywhere, and from its top you see the coloured iron roofs of
the old town, the harbour and Mount Esja. Harpa, the concert hall by the water, has a front of glass
that changes with the light.

Icelanders meet in the pools. Every quarter has one, heated by water from the ground, open late and
outdoors even in a snowstorm. You shower without a swimsuit before you enter; this is not optional.
The Blue Lagoon, forty-five minutes away near the airport, is the famous one, and must be booked.

The Golden Circle is the classic day trip by car: the rift of Thingvellir, where the first parliament
met in the year 930 and where two continents drift apart, the geyser Strokkur, which erupts every six
to ten minutes, and the waterfall Gullfoss. Whale watching boats leave from the old harbour all year.
Northern lights can be seen on clear nights from September to March. In June the sun hardly sets.
Weather changes within minutes, so bring a windproof jacket in every season. Food is expensive; a lamb
hot dog from the stand by the harbour is the cheapest good meal.

In short: the best day trip is the Golden Circle. The best view is from the tower of Hallgrímskirkja.
The best meal for little money is a hot dog. The best months for northern lights are September to
March.</module>
      <module name="maui">The destination is Maui, the second largest of the islands of Hawaii.

Maui grew from two volcanoes that are joined by a low green plain. The younger one, Haleakala, rises
to 3,055 metres. People drive up in the dark, with a permit that must be reserved, to watch the sun
rise over the clouds; it is near freezing up there, so take a blanket. Several companies let you coast
down by bicycle afterwards.

Beaches differ from coast to coast. Wailea in the south has calm water and soft sand, good for small
children. Kaanapali in the west is lively, and snorkelling is good at Black Rock. Beginners learn to
surf at the Cove in Kihei, where waves are small and boards can be rented. Hookipa on the north shore
belongs to windsurfers and to the green turtles that come ashore in the late afternoon. Experts surf
the giant waves of Jaws in winter; everybody else watches from the cliff.

The road to Hana follows the wet side of the island for 84 kilometres, over 59 bridges and around some
620 curves, past waterfalls and bamboo. Start early, fill the tank in Paia, and do not try to hurry.
Humpback whales stay in the warm channel off Lahaina from December to April. Eat poke, raw tuna with
soy sauce and sesame, from any supermarket counter, and shave ice afterwards. The dry months are April
to October; a rental car is needed at any time.

In short: the best beach for small children is Wailea. The best beach to learn to surf is the Cove in
Kihei. The best drive is the road to Hana. The best months are April to October.</module>
      <module name="cape-town">The destination is Cape Town in South Africa.

Cape Town lies between Table Mountain and the sea. The mountain is flat on top and a thousand metres
high. A cable car with a turning floor takes five minutes to go up; the path through Platteklip Gorge
takes two to three hours. Clouds, which people here call the tablecloth, can close the mountain in an
hour, so go on the first clear day.

The Victoria and Alfred Waterfront is a working harbour with restaurants, an aquarium and the ferry to
Robben Island, where Nelson Mandela was held for eighteen of his twenty-seven years in prison. Former
prisoners lead the tours, which should be booked a week ahead. Bo-Kaap, on the slope of Signal Hill,
is known for bright houses and for Cape Malay cooking, mild curries with apricots and raisins.

Drive to the Cape of Good Hope along Chapman's Peak, one of the finest coast roads anywhere. On the
way back, at Boulders Beach, a colony of African penguins nests among granite rocks. The vineyards of
Stellenbosch and Franschhoek are an hour inland, and the tram between wine farms needs no driver among
you. The water of the Atlantic beaches at Clifton and Camps Bay is cold; Muizenberg, on the other
side, is warmer and has long waves for people who learn to surf. December to March is summer, dry and
windy. From July to November whales come close to the shore at Hermanus.

In short: the best view is from Table Mountain. The best place to see penguins is Boulders Beach. The
best drive is Chapman's Peak. The best months are December to March.</module>
      <module name="marrakesh">The destination is Marrakesh in Morocco.

Marrakesh is called the red city, after the walls of pink earth that enclose its old town, the medina.
At its heart lies the square Jemaa el-Fnaa. By day there are juice sellers and snake charmers; at dusk
a hundred kitchens are rolled out, smoke rises, and storytellers and musicians gather circles of
listeners. Watch it first from the terrace of a café, then go down and eat: grilled lamb, snail
soup, harira.

North of the square the souks begin, a maze of covered lanes where every trade has its own: leather,
lamps, carpets, spices. The first price is an invitation to talk; a third of it is a fair beginning,
and a smile costs nothing. You will get lost, which is the point; children point the way for a coin.

The Bahia Palace and the Ben Youssef Madrasa show what cedar wood, plaster and tiles can become. The
Majorelle Garden, cobalt blue among cactuses, was restored by Yves Saint Laurent; come early, when it
opens. Stay in a riad, a house built around a courtyard with a fountain, and spend an afternoon in
a hammam. The Atlas mountains are an hour away: Imlil is the start of easy walks between Berber
villages, and of the climb of Toubkal, 4,167 metres high, which takes two days. March to May and
October are the best months; in July it is often above forty degrees. Dress modestly, and carry small
notes.

In short: the best place to eat is the square Jemaa el-Fnaa. The best garden is the Majorelle Garden.
The best walk is in the Atlas mountains. The best months are March to May.</module>
    </union>
  </module>
  <union>
    <module name="family">We travel as a family: two adults, a girl of nine and a boy of five. The
children like animals, boats and anything with water, and they are tired after two hours of museums. We
need dinner before seven, a room for four, and no long drives without a stop. One of us always stays
with the boy, so tell us which things can be done in turns. Playgrounds on the way are welcome.</module>
    <module name="walker">I travel alone and on foot. I like long walks, hills and early mornings, and
I would rather see one place slowly than five in a hurry. I carry a small tent and a camera. I avoid
crowds, taxis and tours in a group. Tell me where a walk begins, how long it takes and what the weather
may do. I do not need nightlife, but I like to talk to people over a simple meal.</module>
    <module name="food-lovers">We are two friends who travel to eat. We want markets in the morning, a
long lunch, and street food at night; sights are what lies between meals. We eat everything, one of us
no shellfish. We like to know when a dish is in season and how it is ordered. A cooking class would
please us more than a palace, and we do not mind waiting in a line where local people wait.</module>
  </union>
  <module name="budget">We want to spend at most <param name="amount" len="10"
    placeholder="a sum of money that we have saved for it"/> in all, without the flights. Prefer trains
and buses to taxis, and free sights to paid ones. Say what must be booked ahead, since that is where
money is saved. Keep a tenth of the sum for surprises.</module>
</user>
</schema>
