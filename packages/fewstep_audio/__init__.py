"""Speech with few evaluations: one-step text to speech, vocoding, enhancement. Needs the extra `audio`."""
