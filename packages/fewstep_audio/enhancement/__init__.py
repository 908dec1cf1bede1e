"""Speech enhancement: networks over complex spectrograms, the enhancer and StoRM, their training, synthetic rooms."""
