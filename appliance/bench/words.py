"""Common English words, nearly all of which are one token with a leading space in every usual vocabulary."""

from __future__ import annotations

_TEXT = """
about above after again air all along also animal another answer area around art away baby back ball bank base bed
before begin best better big bird black blood blue boat body book both bottom box boy bread break bring brother
build burn business buy call car care carry case catch cause center certain chance change child church circle city
class clean clear close cold color come common company cook cool copy corn corner cost country course cover cross
cut dance dark daughter day dead deal deep design dinner doctor dog door down draw dream dress drink drive drop dry
early earth east easy eat edge effect egg energy engine enough evening event ever example eye face fact fall family
farm fast father fear feel field fight figure fill film find fine finger fire fish floor flow flower fly follow food
foot force forest form free fresh friend front fruit full game garden gas girl give glass gold good great green
ground group grow guide gun hair half hand happy hard head hear heart heat heavy help high hill history hold hole
home hope horse hospital hot hour house human ice idea inside iron island job join jump keep key kind king kitchen
knife know lady lake land language large last late laugh law lead learn leave left leg letter level life light line
list listen little live long look lost love low machine main make man map mark market matter meal mean meat meet
memory metal middle milk mind minute money month moon morning mother mountain mouth move music name nature near
neck need never new news night north nose note number ocean office oil old open orange order other page paint pair
paper parent part party past path pattern pay peace people person picture piece place plain plan plane plant play
point poor power present press price problem public pull push question quick quiet race rain reach read ready reason
record red rest rice rich ride right ring rise river road rock roof room round rule run safe salt sand save school
science sea season seat second see sell send sense serve service set shape share ship shirt shop short side sign
silver simple sing sister size skin sleep slow small smile snow soft soil son song sound south space speak speed
spring square stand star start state step stone stop store story street strong student study sugar summer sun sure
surface swim system table talk tall teach team tell test thing think time touch town trade train travel tree trip
trouble true turn type uncle under valley value village visit voice wait walk wall war warm wash watch water wave
way wear weather week weight west wheel white wide wife wild wind window winter wish woman wood word work world
write year yellow young
"""
WORDS = tuple(_TEXT.split())
