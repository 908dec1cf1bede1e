from fewstep.search.fit import fit_table as fit_table
