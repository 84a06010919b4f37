from checks.tools import *
for line in Tools().versions(): print(line)
