from fewstep.guidance.cfg import CFG as CFG
