"""RegMix: small runs on many mixtures, a regression of their losses, and the mixture that it predicts to be best."""
